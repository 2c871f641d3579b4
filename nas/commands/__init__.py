"""The sub-commands of `nas`, by what a user does: search, look, ship, administer."""
