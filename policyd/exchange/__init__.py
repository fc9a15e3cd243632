"""Other systems' lists and tables, a file for each format: what it says as rules or entries, and the way back.

`exchange` has what all of them share. A reader takes lines and gives an `Imported`; a writer takes an `Exported` and
gives text. Both put into a `Report` what the other side cannot express, so that nothing is left out silently.
"""
