"""Every error Albireo raises on purpose.

    AlbireoError                 anything below; has .code, .file, .field, .fix
    ├── BadInput                 what was sent cannot be used as it is
    │   ├── UnknownFormat        the bytes are of no format that is read here
    │   └── TooLarge             over a stated limit
    ├── NotFound                 no such object, collection or file
    ├── Conflict                 two things that do not fit together (spaces, dimensions)
    ├── BadCheckpoint            a checkpoint folder is damaged or of another layout
    ├── Denied                   the key may not do this
    │   └── NoKey                no key, or an unknown one
    └── Unavailable              the service cannot answer now
        ├── Busy                 it has more to do than it can: try again after .retry_after seconds
        ├── Full                     the disk is full
        ├── Late                 the deadline passed before there was an answer
        └── Gone                 whoever asked went away

The doors (HTTP, CLI) map the *class* to a status and show the *code*; neither parses the message.
"""

from __future__ import annotations

from typing import Any

CODES: dict[str, str] = {
    # formats
    "unknown_format": "the content is of no format that is read here",
    "damaged_file": "the format is recognised, but the file is truncated or corrupt",
    "not_photometric": "a display picture (JPEG, PNG): its pixels are no fluxes",
    "companion_missing": "a file that comes in a pair was given alone",
    "file_not_found": "there is no such file",
    "empty_file": "the file holds no object",
    # conventions
    "unit_missing": "a number without a unit",
    "unit_unknown": "a unit that cannot be converted to the one expected",
    "band_unknown": "a photometric band that no table row names",
    "band_missing": "the bands of an image are not stated",
    "band_count": "the number of image planes and of band names differ",
    "survey_missing": "the survey or instrument is not stated",
    "convention_missing": "a photometric convention (system, kind, extinction) is not stated",
    "zero_point_missing": "fluxes without a zero point",
    "medium_missing": "wavelengths not stated to be in vacuum or in air",
    "frame_missing": "the velocity or sky frame is not stated",
    "alias_ambiguous": "a column name that can mean two things",
    "column_missing": "a column that the format requires is absent",
    "column_unknown": "an option names a column that the file does not have",
    "option_invalid": "an option has a value that it cannot have",
    "statement_conflict": "two statements about one thing, in the file or in the options, disagree",
    "entities_refused": "XML with a document type or entities, which are never resolved",
    "reference_refused": "a file that names other files or addresses, which are never opened",
    "pickle_refused": "pickled Python objects, which are never loaded",
    # images
    "image_too_small": "the image has fewer pixels than the model reads",
    "image_blank": "the image has no finite or no non-zero pixel",
    "pixel_scale": "the pixel scale differs by more than 2 %",
    "pixel_scale_missing": "the pixel scale is not stated",
    "position_outside": "the position asked for is not inside the image",
    "position_differs": "the position stated is not that of the file",
    "wcs_missing": "a position was asked for, but the image has no world coordinates",
    "position_needed": "a mosaic was given without a position",
    "not_finite": "NaN or infinity where a number is needed",
    # spectra
    "wavelength_not_monotonic": "wavelengths do not increase",
    "wavelength_unit": "wavelengths that cannot be in Angstrom",
    "no_coverage": "no good pixel inside the wavelength range of the model",
    "shape_mismatch": "arrays that belong together have different shapes",
    "grid_mismatch": "wavelength grids that must share their pixels do not",
    "not_a_target": "a fibre that was on no object: sky, standing idle or broken",
    # time series
    "time_unit": "times that cannot be in the unit stated",
    "no_epoch": "a light curve without a single epoch",
    # values
    "value_out_of_range": "a value that cannot occur",
    "value_missing": "a value that was asked for is absent",
    "not_sorted": "entries whose order has a meaning are in another",
    "id_inexact": "ids stored as floating-point numbers, which lose digits",
    "id_duplicate": "several objects of a file have the same id",
    "measurement_missing": "the object lacks a modality, a band or a value, and the request accepts none that does",
    "measurement_doubtful": "QA flags say that a measurement may be bad, and the request accepts none that has such",
    # models and tokens
    "modality_unknown": "no such modality in the table",
    "model_unknown": "no model or folder of this name",
    "model_not_pulled": "a model of a hub that was not fetched to this machine",
    "model_gated": "the hub gives a model only to those who have its consent or a token",
    "hub_unreachable": "the hub of models does not answer, or must not be asked",
    "modality_not_in_checkpoint": "the checkpoint was not trained on this modality",
    "nothing_to_embed": "the object has no modality that the checkpoint reads",
    "nothing_to_generate": "every token that was to be drawn is given",
    "label_given": "the answer that was asked for is among what was given",
    "labels_too_few": "too few labelled objects to fit a head or to calibrate it",
    "head_unknown": "no head of this name",
    "head_invalid": "a file that is no task head, or a damaged one",
    "too_many_tokens": "more tokens than the model or the limit allows",
    "checkpoint_invalid": "a checkpoint folder is damaged or of another layout",
    # index
    "space_mismatch": "vectors of another embedding space",
    "dimension_mismatch": "vectors of another dimension",
    "collection_unknown": "no such collection",
    "collection_invalid": "a collection name or definition that cannot be used",
    "object_unknown": "no such object",
    "collection_damaged": "the collection file is corrupt",
    "storage_unavailable": "a file cannot be read or written now: locked or not allowed",
    "storage_full": "the disk is full: nothing can be written, what is there can be read",
    # long runs
    "run_unfinished": "an earlier run into this output is not finished, or another process is at it",
    "run_differs": "a run that is to go on was of other inputs or options, or of another model",
    # requests
    "request_invalid": "a request that cannot be understood",
    "route_unknown": "there is no such address",
    "method_not_allowed": "the address does not know this method",
    "content_type": "a content type that is not read here",
    "not_acceptable": "no format that was asked for can hold the answer",
    "too_large": "over a stated limit",
    "dependency_missing": "an optional part of the installation is missing",
    "not_ready": "the service is starting, draining or broken",
    "overloaded": "more work is waiting than the service takes on",
    "deadline_exceeded": "the deadline passed before there was an answer",
    "cancelled": "whoever asked went away or took the request back",
    "key_missing": "the service asks for a key, and none was given",
    "key_unknown": "a key that the service does not know",
    "role_missing": "the key may not do this",
    "quota_exceeded": "the key has used up what it may use for now",
    "internal": "a defect of Albireo itself",
}
"""Machine codes and their meaning: the one list; docs/errors.md is written from it."""


class AlbireoError(Exception):
    """An error with a machine `code`, what it concerns, and how to mend it.

    `message` says what was wrong; `file` and `field` say where; `fix` says what to do.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        file: str | None = None,
        field: str | None = None,
        fix: str | None = None,
    ) -> None:
        assert code in CODES, code
        super().__init__(message)
        self.code = code
        self.message = message
        self.file = file
        self.field = field
        self.fix = fix

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.field) if part)
        text = f"{where}: {self.message}" if where else self.message
        return f"{text} [{self.code}]" + (f" Fix: {self.fix}" if self.fix else "")

    def as_dict(self) -> dict[str, Any]:
        """The error as plain data, absent parts left out."""
        parts = {
            "code": self.code,
            "message": self.message,
            "file": self.file,
            "field": self.field,
            "fix": self.fix,
        }
        return {key: value for key, value in parts.items() if value is not None}

    def at(self, *, file: str | None = None, field: str | None = None) -> AlbireoError:
        """The same error, told where it happened if it did not know; returns self."""
        self.file = self.file or file
        self.field = self.field or field
        return self


class BadInput(AlbireoError):
    """What was sent cannot be used as it is."""


class UnknownFormat(BadInput):
    """The bytes are of no format that is read here."""


class TooLarge(BadInput):
    """Over a stated limit."""


class NotFound(AlbireoError):
    """No such object, collection or file."""


class Conflict(AlbireoError):
    """Two things that do not fit together."""


class BadCheckpoint(AlbireoError):
    """A checkpoint folder is damaged or of another layout."""


class Denied(AlbireoError):
    """The key may not do this."""


class NoKey(Denied):
    """A key is needed, and there is none, or an unknown one."""


class Unavailable(AlbireoError):
    """The service cannot answer now."""


class Busy(Unavailable):
    """The service has more to do than it can; it should have time again after `retry_after` seconds."""

    def __init__(self, code: str, message: str, *, retry_after: float = 1.0, **where: str | None) -> None:
        super().__init__(code, message, **where)
        self.retry_after = retry_after


class Full(Unavailable):
    """The disk is full: nothing can be written, what is there can be read."""


class Late(Unavailable):
    """The deadline passed before there was an answer."""


class Gone(Unavailable):
    """Whoever asked went away."""
