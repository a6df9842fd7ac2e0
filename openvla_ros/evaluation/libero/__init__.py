"""Success of a checkpoint in LIBERO, by the protocol that OpenVLA's figures were measured with."""
