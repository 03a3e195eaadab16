"""Tables of rotary frequencies for `model.rope.type=table`: one small dataclass each, pure functions of numbers."""
