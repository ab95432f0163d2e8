"""In a test run that checks shapes, those of the plugin are checked as well."""

from jaxtyping import install_import_hook

install_import_hook("streamingt2v_latte", "beartype.beartype")
