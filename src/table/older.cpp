#include "table/older.hpp"

#include <fmt/format.h>

#include <set>
#include <string_view>

#include "core/error.hpp"
#include "core/kernel_hashes.hpp"
#include "kernels/variant.hpp"
#include "table/table.hpp"

namespace moetune {
namespace {

constexpr const char* kOldHash = "kernels_hash";

// The last sources that were hashed as one. The variants' hashes are of what they are since structs
// of the small kernels left the file that the GEMMs include: the machine code is the same.
constexpr std::string_view kLastSources = "a4ae3c12914765b8dd005b209928fc4e";
const KernelHashes& last_hashes() {
  static const KernelHashes hashes{{{"decode", "d0d46a058f086c64c6d3b220ebce1b53"},
                                    {"hopper", "5fffb109cbe37d6c603c07835b2691ff"},
                                    {"portable", "0eb82a0fc7db03b651bf39b1a1e57c89"},
                                    {"swap_ab", "f276acd881877febfe32a76ee32d175b"}},
                                   "c67e1e1344fd48478c96d124ff196498"};
  return hashes;
}

KernelHashes hashes_of(const std::string& sources, const std::set<std::string>& variants) {
  if (sources == kLastSources) return last_hashes();
  KernelHashes hashes{{}, sources};
  for (const std::string& name : variants) hashes.variants[name] = sources;
  return hashes;
}

template <typename Json>
std::set<std::string> variants_in(const Json& entries) {
  std::set<std::string> names;
  for (const Json& entry : entries) {
    if (!entry.is_object()) continue;
    for (const Json& step : entry.value("plan", Json::array())) {
      if (!step.is_object()) continue;
      const Json name = step.value("variant", Json());
      if (name.is_string()) names.insert(name.template get<std::string>());
    }
  }
  return names;
}

template <typename Json>
void upgrade(Json& document, const std::string& path) {
  if (!document.is_object() || document.value("schema", Json()) != "moe-tune-table" ||
      document.value("schema_version", Json()) != kOldTableSchemaVersion) {
    return;
  }
  Json& identity = document["identity"];
  if (!identity.is_object() || !identity.value(kOldHash, Json()).is_string()) {
    throw Error(ErrorKind::input, fmt::format("{}: a table of version {} has the text '{}' in its "
                                              "identity, this one has not; tune again with "
                                              "moe-tune search",
                                              path, kOldTableSchemaVersion, kOldHash));
  }
  const KernelHashes hashes = hashes_of(identity.at(kOldHash).template get<std::string>(),
                                        variants_in(document.value("entries", Json::object())));
  identity.erase(kOldHash);
  identity["variants"] = hashes.variants;
  identity["small_kernels"] = hashes.small_kernels;
  document["schema_version"] = kTableSchemaVersion;
}

}  // namespace

void upgrade_table(nlohmann::json& document, const std::string& path) {
  upgrade(document, path);
}

void upgrade_table(nlohmann::ordered_json& document, const std::string& path) {
  upgrade(document, path);
}

void upgrade_journal_identity(nlohmann::ordered_json& identity) {
  using Json = nlohmann::ordered_json;
  if (!identity.is_object() || !identity.value(kOldHash, Json()).is_string()) return;
  std::set<std::string> searched{std::string(kReferenceVariant)};
  for (const Json& name : identity.value("variants", Json::array()))
    if (name.is_string()) searched.insert(name.get<std::string>());
  KernelHashes hashes = hashes_of(identity.at(kOldHash).get<std::string>(), searched);
  std::erase_if(hashes.variants, [&](const auto& item) { return !searched.contains(item.first); });
  identity.erase(kOldHash);
  identity["variant_hashes"] = hashes.variants;
  identity["small_kernels"] = hashes.small_kernels;
}

}  // namespace moetune
