"""The forms a model can be exported in, and what each needs: known without torch."""

from __future__ import annotations

from importlib.util import find_spec

from embedforge.errors import EmbedforgeError, did_you_mean, missing_extra

FORMS = ("onnx", "openvino", "gguf", "sentence-transformers")

NEEDS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "gguf": ("gguf", "xllamacpp"),
    "sentence-transformers": (),
}
"""Packages that are not installed with embedforge."""

EXTRAS = {"onnx": "onnx", "openvino": "openvino", "gguf": "llamacpp"}
"""The extra that has them; the extra gguf is for reading such files, and has no runtime."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}
"""What an exported folder with an embed.py is run with."""


def require_form(form: str, int8: bool = False) -> None:
    """Raise unless there is such a form and its packages are installed.

    >>> require_form("onxx")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    embedforge.errors.EmbedforgeError: --to takes embedforge, onnx, ... Did you mean 'onnx'?
    """
    if form not in FORMS:
        raise EmbedforgeError(
            f"--to takes embedforge, {', '.join(FORMS)}, not '{form}'.{did_you_mean(form, FORMS)}"
        )
    if int8 and form not in EXTRAS:
        raise EmbedforgeError(f"--int8 is for --to {', '.join(EXTRAS)}, not for {form}")
    for package in (*NEEDS[form], *(("nncf",) if int8 and form == "openvino" else ())):
        if find_spec(package) is None:
            raise missing_extra(package, EXTRAS[form], f"--to {form}")
