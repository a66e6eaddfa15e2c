"""One or many runs as a folder: tables, plots and one page that needs nothing else."""
