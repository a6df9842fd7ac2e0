"""How often a policy does what it is told, when its own actions decide what it sees next."""
