"""`sigma app`: check the models, hold the gallery, serve the page until it is interrupted."""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from pipelines.app.config import MAX_UPLOAD_BYTES, AppConfig
from pipelines.app.gallery import Gallery
from pipelines.app.guard import Guard
from pipelines.app.studio import Studio
from pipelines.common.loopback import check_listening, hosts_of, is_loopback
from sigma_data.errors import ConfigError
from sigma_model.config import PRESETS
from sigma_model.omnigen2.files import is_omnigen2

logger = logging.getLogger(__name__)


def run_app(config: AppConfig) -> None:
    """Serve until Ctrl-C. Raises ConfigError for a model, a folder or a port that cannot be used."""
    if find_spec("gradio") is None:
        raise ConfigError("gradio is not installed: run `pip install 'sigma-multimodal[app]'`")
    twice = next((model for model in config.models if config.models.count(model) > 1), None)
    if twice is not None:
        raise ConfigError(f"--model {twice} is given twice")
    for model in config.models:
        if model not in PRESETS and not is_omnigen2(Path(model)):
            from sigma_model.loading import describe_model

            describe_model(model, base=config.base)  # what is no model is refused before anything is served
        if config.adapter is not None:
            from sigma_model.omnigen2.lora import check_adapter

            check_adapter(config.adapter, omnigen2=is_omnigen2(Path(model)))
    gallery = Gallery(config.out)
    # Set before gradio is imported, which reads them then.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    studio = Studio(config, gallery)
    try:
        _serve(config, studio)
    finally:
        studio.close()


def _serve(config: AppConfig, studio: Studio) -> None:
    from pipelines.app.page import build_page, theme

    port = check_listening(config.host, config.port)
    page = build_page(studio)
    page.queue(max_size=256, default_concurrency_limit=None, api_open=False)
    try:
        _, address, _ = page.launch(
            server_name=config.host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            enable_monitoring=False,
            run_history=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            max_file_size=MAX_UPLOAD_BYTES,
            allowed_paths=[str(studio.gallery.out)],
            app_kwargs={"middleware": [(Guard, (), {"hosts": hosts_of(config.host)})], "docs_url": None},
            **theme(),
        )
    except OSError:  # gradio's own text names options of its own
        raise ConfigError(f"--port {port}: is taken: choose another, or 0 for a free one") from None
    logger.info("sigma: the app is at %s (Ctrl-C ends it); results are kept in %s", address, studio.gallery.out)
    studio.warm_up()
    if not is_loopback(config.host):
        logger.warning("sigma: everybody who reaches %s can use the app, and see all results", config.host)
    try:
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    finally:
        studio.close()  # before the page, which waits for requests that would be computed meanwhile
        page.close(verbose=False)
