"""Text to token ids and masks, under a written contract.

`contract` is what decides, `render` where a text becomes tokens, the only such place: read these two first.
`goldens` checks that a loaded model still does what the saved one did.
"""
