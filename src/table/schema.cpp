#include "table/schema.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <valijson/adapters/nlohmann_json_adapter.hpp>
#include <valijson/schema.hpp>
#include <valijson/schema_parser.hpp>
#include <valijson/validator.hpp>
#include <vector>

#include "core/embedded.hpp"
#include "core/error.hpp"

namespace moetune {
namespace {

using Json = nlohmann::json;
using Adapter = valijson::adapters::NlohmannJsonAdapter;

// valijson names a field as "<root>", "[entries]", "[8]", "[source]".
std::vector<std::string> field_path(const std::vector<std::string>& context) {
  std::vector<std::string> keys;
  for (const std::string& part : context)
    if (part.starts_with('[') && part.ends_with(']'))
      keys.push_back(part.substr(1, part.size() - 2));
  return keys;
}

const Json* child(const Json& value, const std::string& key) {
  if (value.is_object()) {
    const auto found = value.find(key);
    return found == value.end() ? nullptr : &*found;
  }
  if (value.is_array() && !key.empty() && key.size() < 7 &&
      std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; })) {
    const std::size_t index = std::stoul(key);
    return index < value.size() ? &value[index] : nullptr;
  }
  return nullptr;
}

// The part of the schema that rules the field at `keys`.
const Json* schema_at(const Json& schema, const std::vector<std::string>& keys) {
  const auto resolve = [&](const Json* node) {
    const auto reference = node->find("$ref");
    if (reference == node->end()) return node;
    return &schema.at(Json::json_pointer(reference->get<std::string>().substr(1)));
  };
  const Json* node = &schema;
  for (const std::string& key : keys) {
    const Json* next = nullptr;
    if (node->contains("properties")) next = child(node->at("properties"), key);
    if (!next && node->contains("patternProperties")) next = &node->at("patternProperties").front();
    if (!next && node->contains("items")) next = &node->at("items");
    if (!next && node->contains("additionalProperties")) next = &node->at("additionalProperties");
    if (!next || !next->is_object()) return nullptr;
    node = resolve(next);
  }
  return node;
}

// Values come from anyone's file: no line breaks or terminal codes, and not megabytes.
std::string printable(std::string text) {
  constexpr std::size_t kMaxLength = 300;
  if (text.size() > kMaxLength) text = text.substr(0, kMaxLength) + "...";
  std::replace_if(
      text.begin(), text.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

std::string describe(const valijson::ValidationResults::Error& error, const Json& document,
                     const Json& schema) {
  const std::vector<std::string> keys = field_path(error.context);
  const Json* value = &document;
  for (const std::string& key : keys)
    if (value) value = child(*value, key);
  std::string text = keys.empty() ? "the table" : fmt::format("{}", fmt::join(keys, "."));
  if (value) {
    text += value->is_structured() ? fmt::format(" ({})", value->type_name())
                                   : fmt::format(" is {}", value->dump());
  }
  std::string reason = error.description;
  if (reason.ends_with('.')) reason.pop_back();
  const Json* node = schema_at(schema, keys);
  const std::string expected = node ? node->value("description", "") : "";
  return printable(text + ": " + reason) +
         (expected.empty() ? "" : fmt::format("; expected {}", expected));
}

}  // namespace

std::string_view table_schema() {
  for (const EmbeddedFile& file : embedded_configs())
    if (file.name == "table.schema.json") return file.text;
  throw std::logic_error("table.schema.json is not built in");
}

void check_schema(const Json& document, const std::string& path) {
  const Json text = Json::parse(table_schema());
  valijson::Schema schema;
  valijson::SchemaParser(valijson::SchemaParser::kDraft7).populateSchema(Adapter(text), schema);
  valijson::ValidationResults results;
  if (valijson::Validator().validate(schema, Adapter(document), &results)) return;
  // An error in a field is followed by one for each object around it: the deepest tells most.
  const auto deepest = std::max_element(
      results.begin(), results.end(),
      [](const auto& a, const auto& b) { return a.context.size() < b.context.size(); });
  throw Error(ErrorKind::input,
              fmt::format("{}: {}. Mend the field, or write the table anew with moe-tune search",
                          path, describe(*deepest, document, text)));
}

}  // namespace moetune
