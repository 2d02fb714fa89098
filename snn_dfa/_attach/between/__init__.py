"""What lies between two layers, read off autograd's graph, for feedback that knows the weights."""
