// Cubins on disk, so that no kernel is compiled twice on a machine. Private to the module.
#pragma once

#include <atomic>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "core/embedded.hpp"
#include "jit/compiler.hpp"

namespace moetune {

// Hash of everything that decides the cubin: the source and what it includes, the expressions,
// the options with the architecture, NVRTC's version and the format of the entries.
std::string cache_key(const KernelSource& source, const std::string& arch,
                      std::span<const EmbeddedFile> files);

// A cubin as bytes, with a checksum, and back; nothing when they are torn, altered or of another
// key.
std::string encode_cubin(const std::string& key, const Cubin& cubin);
std::optional<Cubin> decode_cubin(const std::string& key, std::string_view entry);

// One file an entry, written whole or not at all, so any number of processes may share the
// directory. Losing the cache never fails a run: what cannot be read is absent, and what cannot be
// written costs one warning. All members may be called from several threads.
class Cache {
 public:
  explicit Cache(std::string directory);  // empty: no cache

  // Nothing when the entry is absent, torn or altered.
  std::optional<Cubin> find(const std::string& key) const;
  // False when there is a directory and the entry is not in it.
  bool store(const std::string& key, const Cubin& cubin);

 private:
  void give_up_writing(const std::string& reason);
  std::string path(const std::string& key) const;

  std::string directory_;
  std::atomic<bool> writable_;
};

}  // namespace moetune
