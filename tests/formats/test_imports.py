import subprocess
import sys


def test_formats_import_numpy_and_nothing_heavier():
    code = (
        "import sys, billhook.formats\n"
        "print([name for name in ('torch', 'safetensors', 'pydantic', 'accelerate') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
