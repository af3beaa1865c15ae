"""What is looked up, written from the code: the pages of docs/ that list every key and every series."""
