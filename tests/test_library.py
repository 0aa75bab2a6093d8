#!/usr/bin/env python3
"""libmoetune as others use it: installed, found, compiled against by C and C++, and run.

usage: test_library.py BUILD_DIRECTORY CUDA_INCLUDE_DIRECTORY CUDA_LIBRARY_DIRECTORY
"""
import pathlib
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parent.parent
BUILD, CUDA_INCLUDE, CUDA_LIB = sys.argv[1:4]

CONSUMER = """
cmake_minimum_required(VERSION 3.25)
project(consumer LANGUAGES CXX)
find_package(moetune REQUIRED)
foreach(kind moetune moetune_static)
  add_executable(uses_${kind} main.cpp)
  target_link_libraries(uses_${kind} PRIVATE moetune::${kind})
endforeach()
"""
MAIN = """
#include <moetune.h>
#include <cstdio>
int main() {
  moetune_layer* layer = nullptr;
  const moetune_status status = moetune_create(nullptr, nullptr, &layer);
  std::printf("%s %s %s", moetune_version(), moetune_status_name(status), moetune_last_error());
}
"""


def run(*command: object, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


class Library(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.prefix = cls.root / "installed"
        done = run("cmake", "--install", BUILD, "--component", "library", "--prefix", cls.prefix)
        assert done.returncode == 0, done.stderr
        cls.lib = next(cls.prefix.glob("**/libmoetune.so")).parent

    @classmethod
    def tearDownClass(cls) -> None:
        cls.folder.cleanup()

    def test_the_header_compiles_alone_as_c11_and_cpp20(self) -> None:
        for language, standard in (("c", "c11"), ("c++", "c++20")):
            done = run("c++" if language == "c++" else "cc", f"-std={standard}", "-pedantic", "-Wall", "-Wextra",
                       "-Werror", "-x", language, "-c", "-o", "/dev/null",
                       self.prefix / "include/moetune.h")
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_example_is_short_compiles_as_c_and_runs_or_says_why_not(self) -> None:
        example = SOURCE / "examples/run_layer.c"
        self.assertLessEqual(len(example.read_text().splitlines()), 60)
        program = self.root / "run_layer"
        flags = (self.lib / "pkgconfig/moetune.pc").read_text()
        self.assertIn("-lmoetune", flags)
        done = run("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", example, f"-I{self.prefix}/include",
                   f"-I{CUDA_INCLUDE}", f"-L{self.lib}", "-lmoetune", f"-L{CUDA_LIB}", "-lcudart", "-lm",
                   f"-Wl,-rpath,{self.lib}:{CUDA_LIB}", "-o", program)
        self.assertEqual(done.returncode, 0, done.stderr)
        done = run(program)
        if done.returncode == 0:
            self.assertIn("right", done.stdout)
        else:  # no GPU: copying to it fails first
            self.assertEqual(done.returncode, 2, done.stderr)

    def test_cmake_finds_it_and_links_both_libraries(self) -> None:
        project = self.root / "consumer"
        project.mkdir()
        (project / "CMakeLists.txt").write_text(CONSUMER)
        (project / "main.cpp").write_text(MAIN)
        done = run("cmake", "-S", project, "-B", project / "build", f"-DCMAKE_PREFIX_PATH={self.prefix}",
                   f"-DCUDAToolkit_ROOT={pathlib.Path(CUDA_INCLUDE).parent}")
        self.assertEqual(done.returncode, 0, done.stderr)
        done = run("cmake", "--build", project / "build")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for kind in ("moetune", "moetune_static"):
            done = run(project / "build" / f"uses_{kind}")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("MOETUNE_INVALID_ARGUMENT moetune_create: desc is NULL", done.stdout)

    def test_the_shared_library_shows_the_interface_alone(self) -> None:
        done = run("nm", "-D", "--defined-only", self.lib / "libmoetune.so")
        names = {line.split()[-1].split("@")[0] for line in done.stdout.splitlines() if line}
        self.assertTrue(names)
        self.assertEqual({name for name in names if not name.startswith("moetune_")}, set())


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=1)
