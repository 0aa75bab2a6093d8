#include "report/html_page.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "core/embedded.hpp"
#include "core/error.hpp"
#include "report/html_views.hpp"
#include "report/pareto.hpp"
#include "report/summary.hpp"

namespace moetune {

std::string html_escape(std::string_view text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMappedParameters = 4;  // the most costly ones, in pairs

// What is longer than three digits keeps one decimal.
Json rounded(double value) {
  return Json(std::stod(fmt::format("{:.5g}", value)));
}

// 1344640 -> "1,344,640"
std::string grouped(std::uint64_t count) {
  std::string text = fmt::format("{}", count);
  for (std::size_t at = text.size(); at > 3; at -= 3) text.insert(at - 3, ",");
  return text;
}

std::string step_text(const Step& step) {
  return fmt::format("{} {}", step.variant, compact(step.point));
}

Json group_json(const StageLooks& group) {
  Json json{{"stage", to_string(group.stage)},
            {"tokens", group.num_tokens},
            {"variant", group.variant},
            {"source", source_names(group.sources)},
            {"best_us", rounded(group.best_us)},
            {"best", compact(*group.best)},
            {"num_looks", group.looks.size()},
            {"parameters", Json::array()},
            {"maps", Json::array()},
            {"convergence", Json::array()}};
  const std::vector<ParameterCost> costs = parameter_costs(group);
  for (const ParameterCost& cost : costs) {
    Json values = Json::array();
    for (const FixedValue& value : cost.values) {
      values.push_back({value.value, rounded(value.cost_percent), value.brief ? 1 : 0});
    }
    json["parameters"].push_back(
        {{"name", cost.name}, {"range", rounded(cost.range_percent)}, {"values", values}});
  }
  const std::size_t num_mapped = std::min(costs.size(), kMappedParameters);
  for (std::size_t i = 0; i < num_mapped; ++i) {
    for (std::size_t j = i + 1; j < num_mapped; ++j) {
      const HeatMap map = heat_map(group, costs[i].name, costs[j].name);
      Json cells = Json::array();
      for (const auto& row : map.cells) {
        Json& out = cells.emplace_back(Json::array());
        for (const auto& cell : row) {
          out.push_back(cell ? Json{rounded(cell->cost_percent), cell->brief ? 1 : 0}
                             : Json(nullptr));
        }
      }
      json["maps"].push_back({{"row", map.row_name},
                              {"column", map.column_name},
                              {"rows", map.rows},
                              {"columns", map.columns},
                              {"cells", std::move(cells)}});
    }
  }
  for (const ConvergencePoint& point : convergence(group)) {
    json["convergence"].push_back(
        {rounded(point.elapsed_s), point.num_looks, rounded(point.best_us)});
  }
  return json;
}

std::string tile(std::string_view value, std::string_view label) {
  return fmt::format("<div class=\"tile\"><b>{}</b><span>{}</span></div>\n", html_escape(value),
                     html_escape(label));
}

std::string tiles(const ReportData& data) {
  std::vector<double> speedups;
  for (const auto& [num_tokens, point] : data.layers) speedups.push_back(point.entry.speedup);
  std::string text;
  const std::string source = source_names(data.sources());
  if (const auto stats = speedup_stats(speedups)) {
    text += tile(speedup_text(stats->avg_speedup),
                 fmt::format("mean speedup of the layer, {}", source));
    text += tile(speedup_text(stats->best_speedup), fmt::format("best speedup, {}", source));
  }
  text += tile(fmt::format("{}", data.layers.size()),
               data.complete ? "token counts" : "token counts; the search is not complete");
  text += tile(grouped(data.num_trials), "trials");
  std::uint64_t num_rejected = 0;
  for (const auto& [rule, count] : data.rejected) num_rejected += count;
  text += tile(grouped(num_rejected), "points rejected before timing");
  if (data.wall_s > 0) {
    // Without a driver it is not a GPU that was busy.
    const bool has_gpu = !data.identity.driver.empty();
    text += tile(
        fmt::format("{:.0f} s", data.wall_s),
        has_gpu ? fmt::format("search time, GPU busy {:.0f} %", 100 * data.busy_s / data.wall_s)
                : "search time, offline");
  }
  return text;
}

std::string layer_rows(const ReportData& data) {
  std::string text;
  for (const auto& [num_tokens, point] : data.layers) {
    const TableEntry& entry = point.entry;
    const auto step = [&entry](std::string_view op) {
      const Step* found = entry.plan.find(op);
      return found == nullptr ? std::string("-") : html_escape(step_text(*found));
    };
    const auto source = to_string(entry.source);
    text += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{}</td><td><b>{}</b></td><td>{}</td>"
        "<td class=\"left\"><span class=\"source {}\">{}</span>{}</td>"
        "<td class=\"plan\">{}</td><td class=\"plan\">{}</td></tr>\n",
        num_tokens, time_text(entry.timing.median_us, Source::measured),
        time_text(entry.reference_us, Source::measured), speedup_text(entry.speedup),
        time_text(point.floor_us, Source::measured), source, source, point.is_tie ? " tie" : "",
        step("gemm1"), step("gemm2"));
  }
  return text;
}

std::string failures(const ReportData& data) {
  std::string text;
  for (const auto& [status, failed] : data.failed) {
    text += fmt::format("<li>{} {}: {}</li>\n", failed.count, to_string(status),
                        html_escape(failed.example));
  }
  return text.empty() ? "" : "<h3>Trials that failed</h3>\n<ul>" + text + "</ul>";
}

std::string facts(const ReportData& data) {
  const TableIdentity& identity = data.identity;
  const LayerShape& shape = identity.shape;
  std::string text;
  const auto add = [&text](std::string_view name, const std::string& value) {
    text += fmt::format("<dt>{}</dt><dd>{}</dd>\n", name, html_escape(value));
  };
  add("GPU", fmt::format("{} ({}), driver {}", identity.gpu, identity.arch,
                         identity.driver.empty() ? "none: offline" : identity.driver));
  add("layer",
      fmt::format("{} experts, top {}, hidden {}, intermediate {}, {}, routing {}",
                  shape.num_experts, shape.top_k, shape.hidden_size, shape.intermediate_size,
                  to_string(identity.dtype), to_string(data.routing)));
  std::string kernels;
  for (const auto& [name, hash] : identity.kernels.variants) {
    kernels += fmt::format("{} {}, ", name, hash);
  }
  add("kernels", fmt::format("{}around them {}, NVRTC {}", kernels, identity.kernels.small_kernels,
                             identity.nvrtc));
  add("search", fmt::format("{}, begun {}", data.strategy, data.created));
  add("command", data.command);
  if (data.read_gbps > 0) {
    add("floor", fmt::format("computed, not measured: bytes that must move at {:.0f} GB/s, or "
                             "operations at {:.0f} TFLOP/s",
                             data.read_gbps, data.tflops));
  }
  return text;
}

std::string source_note(const std::set<Source>& sources) {
  std::string note = source_footnote(sources);
  std::replace(note.begin(), note.end(), '\n', ' ');
  return html_escape(note);
}

std::string embedded(std::span<const EmbeddedFile> files, std::string_view name) {
  for (const EmbeddedFile& file : files) {
    if (file.name == name) return std::string(file.text);
  }
  throw Error(ErrorKind::failed, fmt::format("the program lacks its file {}", name));
}

// Replaces every @NAME@ once, without looking into what replaced it.
std::string fill(std::string_view page,
                 const std::vector<std::pair<std::string, std::function<std::string()>>>& values) {
  std::string result;
  for (std::size_t at = 0; at < page.size();) {
    const auto& [name, make] =
        *std::min_element(values.begin(), values.end(), [&](const auto& a, const auto& b) {
          return page.find(a.first, at) < page.find(b.first, at);
        });
    const std::size_t found = page.find(name, at);
    result += page.substr(at, found - at);
    if (found == std::string_view::npos) break;
    result += make();
    at = found + name.size();
  }
  return result;
}

}  // namespace

Json page_json(const ReportData& data) {
  Json json{{"read_gbps", data.read_gbps},
            {"tflops", data.tflops},
            {"layers", Json::array()},
            {"rejected", Json::array()},
            {"groups", Json::array()}};
  for (const auto& [num_tokens, point] : data.layers) {
    const TableEntry& entry = point.entry;
    json["layers"].push_back({{"tokens", num_tokens},
                              {"best_us", positive_or_null(entry.timing.median_us)},
                              {"reference_us", positive_or_null(entry.reference_us)},
                              {"floor_us", positive_or_null(point.floor_us)},
                              {"speedup", positive_or_null(entry.speedup)},
                              {"bytes", point.bytes},
                              {"flops", point.flops},
                              {"source", to_string(entry.source)}});
  }
  std::vector<std::pair<std::uint64_t, std::string>> rules;
  for (const auto& [rule, count] : data.rejected) rules.emplace_back(count, rule);
  std::sort(rules.rbegin(), rules.rend());
  for (const auto& [count, rule] : rules) json["rejected"].push_back({rule, count});
  for (const StageLooks& group : stage_looks(data.trials)) {
    json["groups"].push_back(group_json(group));
  }
  return json;
}

std::string html_page(const ReportData& data) {
  const auto file = [](std::string_view name) {
    return [name] { return embedded(embedded_page(), name); };
  };
  const auto json = [&data] {
    std::string text = page_json(data).dump(-1, ' ', false, Json::error_handler_t::replace);
    // Nothing in the data may look like the end of the script that holds it.
    for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos;) {
      text.replace(at, 1, "\\u003c");
    }
    return text;
  };
  const auto title = [&data] {
    return html_escape(fmt::format("{} {} on {}", data.identity.shape.model,
                                   to_string(data.identity.dtype), data.identity.gpu));
  };
  return fill(
      embedded(embedded_page(), "page.html"),
      {{"@TITLE@", title},
       {"@STYLE@", file("page.css")},
       {"@SOURCES@", [&] { return source_names(data.sources()); }},
       {"@SOURCE_NOTE@", [&] { return source_note(data.sources()); }},
       {"@TILES@", [&] { return tiles(data); }},
       {"@ROWS@", [&] { return layer_rows(data); }},
       {"@PARETO@", [&] { return pareto_html(data); }},
       {"@FAILURES@", [&] { return failures(data); }},
       {"@FACTS@", [&] { return facts(data); }},
       {"@DATA@", json},
       {"@CHART_LIBRARY@", [] { return embedded(embedded_chart_library(), "chart.min.js"); }},
       {"@HEAT_SCRIPT@", file("heat.js")},
       {"@SCRIPT@", file("page.js")}});
}

}  // namespace moetune
