"""/docs: the page that shows the OpenAPI document. It works without a network: all that it refers to is served here.

Addresses are relative to the page, so that they hold behind a proxy that serves it below a prefix.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response

PATH = "/docs"

SWAGGER_UI = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon-32x32.png": "image/png",
}
"""Files of Swagger UI, as its makers publish them and fastapi-swagger packs them -> their content types."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Albireo</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null, // by default the document would be sent to another host
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
});
"""

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""With this a browser asks no other host, whatever the scripts of the page try."""

HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "max-age=3600"}


def install(app: FastAPI) -> None:
    """Serve the page of an app, and what it refers to."""
    folder = Path(str(files("fastapi_swagger") / "resources"))

    @app.api_route(PATH, methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    @app.api_route(f"{PATH}/start.js", methods=["GET", "HEAD"], include_in_schema=False)
    async def start() -> Response:
        return Response(START, headers=HEADERS, media_type="text/javascript")

    for name, kind in SWAGGER_UI.items():
        serve(app, folder / name, kind)


def serve(app: FastAPI, file: Path, kind: str) -> None:
    """Serve one file of the page."""

    @app.api_route(f"{PATH}/{file.name}", methods=["GET", "HEAD"], include_in_schema=False)
    async def content() -> FileResponse:
        return FileResponse(file, headers=HEADERS, media_type=kind)
