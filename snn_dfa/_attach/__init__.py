"""How DFA is attached to a network: finding, cutting, broadcasting, and taking off again."""
