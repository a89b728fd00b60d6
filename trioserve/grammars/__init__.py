"""Grammars that answers are held to: written from forms, compiled, and followed token by token.

Used on both floors: the front's examiner tries a grammar out, the ranks enforce it. So no trio and no torch in here.
"""
