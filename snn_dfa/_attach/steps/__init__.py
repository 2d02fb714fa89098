"""A step of a neuron as one node of the graph or one record, and the sums that weights learn by."""
