"""Sources to packed batches: rows, chat, tokens, mixture, plan, loader."""
