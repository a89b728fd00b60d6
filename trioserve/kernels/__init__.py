"""One module per operation: the function that runs it, its shape checks and a torch reference that is the truth."""
