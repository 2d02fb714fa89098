"""What a layer learns by in place of autograd's own way, through its membrane and its weights."""
