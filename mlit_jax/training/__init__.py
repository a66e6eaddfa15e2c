"""Loss, optimizer, step, loop, checkpoints and what is printed."""
