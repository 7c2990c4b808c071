"""How examples lie in files: tar (WebDataset) and the PNG that array data sets are stored as."""
