"""One of Albireo's models in a process of Triton's; which one, config.pbtxt says."""

from albireo.service.triton_backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
