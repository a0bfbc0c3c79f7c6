"""Methods of other papers as strategies, to be compared with; the rest of the package never imports them."""
