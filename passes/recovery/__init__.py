"""Recovery: what is fitted to what, on which data; backends do the fitting (`Trainer`)."""
