"""How ranks find each other, talk, and agree."""
