"""What `doctor` looks at, one subject a module; each function gives findings and changes nothing."""
