"""`make gpu`: what a GPU has to show (right, fast, long, as planned), in stages that each write their result."""
