"""The package without torch and without a GPU: structs, statuses, look-ups, metadata.

Needs a C compiler and nothing else: `python3 tests/python/test_package.py`, or pytest, or ctest.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import on_cpu  # noqa: E402

ROOT = on_cpu.ROOT
HEADER = ROOT / "src" / "runtime" / "moetune.h"
sys.path.insert(0, str(ROOT / "python"))

import moe_tune  # noqa: E402
from moe_tune import _library  # noqa: E402

needs_compiler = unittest.skipUnless(on_cpu.compiler(), "no C compiler")
KEY = _library.LayerKey(0, _library.Dtype.BF16, 8, 2, 64, 32, 64, 32)
NAME_AT_END = r"(\w+)\s*;"


def header_struct(name: str) -> list[str]:
    """The fields of one of the header's structs, in its order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    bodies = re.findall(r"typedef struct \{([^}]*)\}\s*(\w+);", text)
    body = next(body for body, struct in bodies if struct == name)
    return re.findall(NAME_AT_END, body)


def compiled_layout(names: dict[str, list[str]]) -> dict[str, tuple[int, dict[str, tuple[int, int]]]]:
    """What the C compiler says: size of each struct; offset and size of each field."""
    lines = ["#include <stdio.h>", '#include "runtime/moetune.h"', "int main(void) {"]
    for struct, fields in names.items():
        lines.append(f'  printf("{struct} . %zu 0\\n", sizeof({struct}));')
        for field in fields:
            lines.append(
                f'  printf("{struct} {field} %zu %zu\\n", offsetof({struct}, {field}), '
                f"sizeof((({struct}*)0)->{field}));"
            )
    lines.append("  return 0;\n}")
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "layout.c"
        source.write_text("\n".join(lines), encoding="utf-8")
        command = [on_cpu.compiler() or "cc", "-std=c11", f"-I{ROOT / 'src'}", str(source)]
        subprocess.run([*command, "-o", f"{folder}/layout"], check=True)
        output = subprocess.run(
            [f"{folder}/layout"], check=True, capture_output=True, text=True
        ).stdout
    result: dict[str, tuple[int, dict[str, tuple[int, int]]]] = {}
    for line in output.splitlines():
        struct, field, first, second = line.split()
        if field == ".":
            result[struct] = (int(first), {})
        else:
            result[struct][1][field] = (int(first), int(second))
    return result


class Header(unittest.TestCase):
    """The binding says what moetune.h says."""

    STRUCTS = {
        "moetune_layer_desc": _library.LayerDesc,
        "moetune_options": _library.Options,
        "moetune_args": _library.Args,
    }

    @needs_compiler
    def test_structs(self):
        names = {struct: header_struct(struct) for struct in self.STRUCTS}
        layout = compiled_layout(names)
        for struct, binding in self.STRUCTS.items():
            with self.subTest(struct):
                self.assertEqual([name for name, _ in binding._fields_], names[struct])
                size, fields = layout[struct]
                self.assertEqual(ctypes.sizeof(binding), size)
                for name, place in fields.items():
                    field = getattr(binding, name)
                    self.assertEqual((field.offset, field.size), place, name)

    def test_enumerations(self):
        text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
        said = {name: int(value) for name, value in re.findall(r"MOETUNE_(\w+) = (\d+)", text)}
        ours = {item.name: int(item) for item in (*_library.Status, *_library.Dtype)}
        ours |= {"INT32": _library.INT32, "INT64": _library.INT64}
        ours |= {"WEIGHT_FP32": _library.WEIGHT_FP32, "WEIGHT_BF16": _library.WEIGHT_BF16}
        self.assertEqual(ours, said)


@needs_compiler
class Statuses(unittest.TestCase):
    """Every status becomes an exception that carries the library's words."""

    @classmethod
    def setUpClass(cls):
        cls.library = on_cpu.use_fake()

    def switch(self, name):
        value = on_cpu.number(self.library, name)
        self.addCleanup(setattr, value, "value", value.value)
        return value

    def test_kinds(self):
        kinds = {
            _library.Status.INVALID_ARGUMENT: ValueError,
            _library.Status.UNSUPPORTED: _library.UnsupportedError,
            _library.Status.NOT_PREPARED: _library.NotPreparedError,
            _library.Status.COMPILATION_FAILED: RuntimeError,
            _library.Status.DEVICE_ERROR: RuntimeError,
            _library.Status.INTERNAL_ERROR: RuntimeError,
        }
        self.assertEqual(set(kinds) | {_library.Status.OK}, set(_library.Status))
        fail = self.switch("fake_fail_create")
        for status, kind in kinds.items():
            fail.value = status
            with self.subTest(status.name), self.assertRaises(kind) as caught:
                _library.Layer(KEY)
            self.assertEqual(str(caught.exception), "told to refuse the layer")
            self.assertIs(type(caught.exception), kind)
        self.assertTrue(issubclass(_library.UnsupportedError, ValueError))

    def test_description_reaches_the_library(self):
        environment = {"MOE_TUNE_TABLES": "/t:/ä", "MOE_TUNE_CACHE": ""}
        with mock.patch.dict(os.environ, environment):
            _library.Layer(KEY._replace(device=3, dtype=_library.Dtype.FP8_BLOCK, top_k=5))
        desc = _library.LayerDesc.in_dll(self.library, "fake_last_desc")
        self.assertEqual(desc.size, ctypes.sizeof(_library.LayerDesc))
        values = [getattr(desc, name) for name, _ in _library.LayerDesc._fields_[1:]]
        self.assertEqual(values, [1, 8, 5, 64, 32, 64, 32])
        self.assertEqual(on_cpu.number(self.library, "fake_device").value, 3)
        text = ctypes.c_char * 256
        self.assertEqual(text.in_dll(self.library, "fake_table_path").value, "/t:/ä".encode())
        # Set, but to nothing: kernels are kept nowhere. Not set: the library's own choice.
        self.assertEqual(text.in_dll(self.library, "fake_cache_dir").value, b"")
        for name in environment:
            os.environ.pop(name, None)
        _library.Layer(KEY)
        self.assertEqual(text.in_dll(self.library, "fake_cache_dir").value, b"(null)")
        self.assertEqual(text.in_dll(self.library, "fake_table_path").value, b"(null)")

    def test_workspace_prepare_explain(self):
        layer = _library.Layer(KEY)
        self.assertEqual(layer.workspace_bytes(3), 3 * 2 * 32 * 4)
        self.assertEqual(layer.workspace_bytes(3), 3 * 2 * 32 * 4)
        layer.prepare([1, 7])
        layer.prepare()
        self.assertEqual(layer.explain(9), "9 tokens, hidden size 64")
        self.assertEqual(layer.explain(9, as_json=True), '{"num_tokens": 9, "hidden_size": 64}')
        self.assertEqual(_library.library_version(), moe_tune.__version__)
        self.assertEqual(moe_tune.version(), moe_tune.__version__)

    def test_run(self):
        layer = _library.Layer(KEY)
        needs = self.switch("fake_needs_prepare")
        needs.value = 1
        args = _library.Args(size=ctypes.sizeof(_library.Args), num_tokens=0)
        address = ctypes.addressof(args)
        self.assertEqual(layer.run(address, 0), _library.Status.NOT_PREPARED)
        layer.prepare([0])
        self.assertEqual(layer.run(address, 0), _library.Status.OK)
        args.size = 8
        self.assertEqual(layer.run(address, 0), _library.Status.INVALID_ARGUMENT)
        self.assertEqual(str(_library.error_of(1)), "args.size")


class Finding(unittest.TestCase):
    """Where the library is looked for, and what is said where there is none."""

    def test_wrong_path(self):
        with (
            mock.patch.dict(os.environ, {"MOE_TUNE_LIBRARY": "/nowhere/lib.so"}),
            self.assertRaisesRegex(OSError, "MOE_TUNE_LIBRARY is '/nowhere/lib.so'"),
        ):
            _library._library_path()

    def test_package_without_library(self):
        with mock.patch.dict(os.environ):
            os.environ.pop("MOE_TUNE_LIBRARY", None)
            expected = pathlib.Path(_library.__file__).resolve().parent / "lib" / "libmoetune.so"
            if expected.is_file():
                self.assertEqual(_library._library_path(), expected)
            else:
                with self.assertRaisesRegex(OSError, "MOE_TUNE_LIBRARY"):
                    _library._library_path()

    @needs_compiler
    def test_another_library(self):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "libother.so"
            command = [on_cpu.compiler() or "cc", "-shared", "-x", "c", os.devnull, "-o", str(path)]
            subprocess.run(command, check=True)
            with (
                mock.patch.dict(os.environ, {"MOE_TUNE_LIBRARY": str(path)}),
                self.assertRaisesRegex(OSError, "has no moetune_create"),
            ):
                _library._open()

    def test_preloading_nvrtc_never_raises(self):
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder) / "nvidia" / "cu13" / "lib"
            place.mkdir(parents=True)
            (place / "libnvrtc.so.13").write_text("not a library")
            torch = mock.Mock(__file__=f"{folder}/torch/__init__.py")
            with mock.patch.dict(sys.modules, {"torch": torch}):
                _library._preload_nvrtc()


class Metadata(unittest.TestCase):
    """One version; a light import; a program that says what is missing."""

    def test_version(self):
        text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        found = re.search(r"project\(moe-tune VERSION ([0-9.]+)", text)
        self.assertIsNotNone(found)
        self.assertEqual(moe_tune.__version__, found.group(1))

    def test_typed(self):
        self.assertTrue((ROOT / "python" / "moe_tune" / "py.typed").is_file())

    def test_import_does_not_import_torch(self):
        code = "import sys, moe_tune, moe_tune._program; sys.exit('torch' in sys.modules)"
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "python")}
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)

    def test_unknown_attribute(self):
        with self.assertRaises(AttributeError):
            _ = moe_tune.no_such_thing

    def test_launcher(self):
        package = ROOT / "python" / "moe_tune"
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / "moe_tune"
            copy.mkdir()
            for name in ("__init__.py", "__main__.py", "_program.py", "_library.py"):
                (copy / name).write_bytes((package / name).read_bytes())
            environment = {**os.environ, "PYTHONPATH": folder}
            command = [sys.executable, "-m", "moe_tune", "a b", "--c"]
            missing = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            self.assertEqual(missing.returncode, 1)
            self.assertIn("has no program", missing.stderr)
            program = copy / "bin" / "moe-tune"
            program.parent.mkdir()
            program.write_text('#!/bin/sh\nprintf "<%s>" "$@"\nexit 7\n')
            program.chmod(0o755)
            ran = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            self.assertEqual((ran.stdout, ran.returncode), ("<a b><--c>", 7))


if __name__ == "__main__":
    unittest.main()
