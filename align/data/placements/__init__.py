"""The placements of the group `positions`, one a file; `align.data.positions.Placement` says what each has.

logo: LOGO's, between the chunks of a context and inside them; e2: E²-LLM's scale and offset; randomised: Giraffe's
random steps; skip: PoSE's chunks; bounds: what they refuse alike.
"""
