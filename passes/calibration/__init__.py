"""What samples say of the inputs of products: statistics, second moments, and what follows."""
