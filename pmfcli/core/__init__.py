"""The mathematics: tensors in, tensors out. No files, no printing, no pandas, no typer."""
