"""The registered ops: schema, shape function, choice of backend, autograd."""
