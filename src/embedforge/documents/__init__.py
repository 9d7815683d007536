"""A folder of the user's own files to texts, by the structure that the files have; no model, no torch.

`folder.read_folder` is the way in, read it first. `find_files` lists a folder, `readers` turns a file into a
`ParsedFile` whose sections are its headings, `chunks` cuts documents, `sentences` cuts chunks, `pairs` makes
questions of headings and docstrings, and `hold_out` keeps some files for testing.
"""

from embedforge.documents.document import Chunk, Folder, Pair, ParsedFile
from embedforge.documents.folder import read_folder

__all__ = ["Chunk", "Folder", "Pair", "ParsedFile", "read_folder"]
