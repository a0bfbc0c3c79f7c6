"""One evaluation of a network by several ranks, each on its part of the picture; exact to rounding."""
