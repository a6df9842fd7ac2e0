"""A policy on every frame of recorded episodes: variants, engines, the folder of results."""
