#include "tune/gzip.hpp"

#include <fmt/format.h>
#include <zlib.h>

#include <memory>

#include "core/error.hpp"
#include "core/text.hpp"

namespace moetune {

std::string read_maybe_gzip(const std::string& path) {
  if (!path.ends_with(".gz")) return read_file(path);
  // gzopen reads through what is not compressed, and says little about a file it cannot open.
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) return read_file(path);
  std::string text;
  std::string block(1 << 18, '\0');
  int num_read = 0;
  do {
    num_read = gzread(file.get(), block.data(), static_cast<unsigned>(block.size()));
    if (num_read > 0) text.append(block, 0, static_cast<std::size_t>(num_read));
  } while (num_read > 0);
  int code = Z_OK;
  const char* reason = gzerror(file.get(), &code);
  if (num_read < 0 || (code != Z_OK && code != Z_STREAM_END)) {
    throw Error(ErrorKind::input,
                fmt::format("{}: cannot uncompress: {}; get the file again", path, reason));
  }
  return text;
}

}  // namespace moetune
