// A report's page in a browser: no error, and every chart has drawn something. Skips, saying so,
// where there is no Chromium.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "core/text.hpp"
#include "report/html_page.hpp"
#include "tests/table_fixture.hpp"
#include "tune/journal.hpp"

using namespace moetune;

namespace {

std::string browser;

std::string find_browser() {
  const char* path = std::getenv("PATH");
  for (const char* name : {"chromium", "chromium-browser", "google-chrome"}) {
    for (std::string rest = path == nullptr ? "" : path; !rest.empty();) {
      const std::size_t end = std::min(rest.find(':'), rest.size());
      const std::string file = rest.substr(0, end) + "/" + name;
      std::error_code ignored;
      if (std::filesystem::exists(file, ignored)) return file;
      rest.erase(0, end + 1);
    }
  }
  return "";
}

// Before the page's scripts: keeps what goes wrong. After them: counts each chart's pixels that are
// not the background's, and each heat map's coloured cells.
constexpr const char* kBefore = R"(<script>
window.wrong = [];
addEventListener('error', (event) => wrong.push(event.message));
for (const name of ['error', 'warn']) console[name] = (...words) => wrong.push(words.join(' '));
</script>)";
constexpr const char* kAfter = R"(<script>
addEventListener('load', () => setTimeout(() => {
  const drawn = {};
  for (const canvas of document.querySelectorAll('canvas')) {
    const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    const colours = new Map();
    for (let i = 0; i < data.length; i += 4) {
      if (data[i + 3] < 128) continue;
      const key = data[i] << 16 | data[i + 1] << 8 | data[i + 2];
      colours.set(key, (colours.get(key) ?? 0) + 1);
    }
    // The series' colours, not those of axes and labels.
    const series = ['--best', '--reference', '--floor'].map((name) =>
        parseInt(getComputedStyle(document.documentElement).getPropertyValue(name).trim().slice(1), 16));
    drawn[canvas.id] = series.reduce((sum, key) => sum + (colours.get(key) ?? 0), 0);
  }
  document.querySelectorAll('.heat').forEach((table, i) => {
    drawn['heat' + i] = [...table.querySelectorAll('td')].filter((td) => td.style.background).length;
  });
  const result = document.createElement('pre');
  result.id = 'result';
  result.textContent = JSON.stringify({wrong, drawn, theme: matchMedia('(prefers-color-scheme: dark)').matches});
  document.body.append(result);
}, 200));
</script>)";

std::string with_probe(std::string page) {
  page.insert(page.find("<head>") + 6, kBefore);
  page.insert(page.rfind("</body>"), kAfter);
  return page;
}

struct Seen {
  nlohmann::json result;  // null when the page's scripts did not come to their end
  std::string log;
};

Seen look_at(const std::string& page, const std::string& more = "") {
  const TemporaryFolder directory;
  write_file_atomically(directory.file("page.html"), with_probe(page));
  // --no-sandbox: as root, in a container, it has none to offer. No network: nothing may need it.
  const std::string command = fmt::format(
      "timeout 120 '{}' --headless --no-sandbox --disable-gpu --disable-dev-shm-usage "
      "--user-data-dir='{}' --host-resolver-rules='MAP * ~NOTFOUND' --enable-logging=stderr "
      "--virtual-time-budget=10000 --window-size=1300,2400 {} --dump-dom 'file://{}' 2>'{}'",
      browser, directory.file("profile"), more, directory.file("page.html"), directory.file("log"));
  std::FILE* output = popen(command.c_str(), "r");
  REQUIRE(output != nullptr);
  std::string document;
  std::array<char, 65536> chunk{};
  while (const std::size_t got = std::fread(chunk.data(), 1, chunk.size(), output))
    document.append(chunk.data(), got);
  pclose(output);
  Seen seen;
  seen.log = read_file(directory.file("log"));
  const std::string begin = "<pre id=\"result\">";
  if (const std::size_t at = document.rfind(begin); at != std::string::npos) {
    const std::size_t from = at + begin.size();
    seen.result =
        nlohmann::json::parse(document.substr(from, document.find("</pre>", from) - from));
  }
  return seen;
}

SearchRecord sample_record() {
  JournalContents contents =
      read_journal(MOETUNE_SOURCE_DIR "/tests/data/journals/qwen3-30b-a3b.jsonl");
  SearchRecord record{contents.header, {}, contents.others};
  for (const JournalTrial& known : contents.trials)
    record.trials.push_back({known.trial, known.elapsed_s});
  return record;
}

void check_clean(const Seen& seen) {
  CAPTURE(seen.log);
  REQUIRE_FALSE(seen.result.is_null());
  CHECK(seen.result.at("wrong").dump() == "[]");
  CHECK(seen.log.find(":CONSOLE") == std::string::npos);
}

}  // namespace

TEST_CASE("page: every chart draws its series, and the console stays empty") {
  const Seen seen = look_at(html_page(gather(sample_record(), std::nullopt)));
  check_clean(seen);
  CHECK(seen.result.at("theme") == false);
  const auto& drawn = seen.result.at("drawn");
  for (const char* chart :
       {"layer", "speedup", "sensitivity", "convergence", "roofline", "rejected"}) {
    CAPTURE(chart);
    CHECK(drawn.value(chart, 0) > 50);
  }
  for (const char* map : {"heat0", "heat1", "heat2", "heat3", "heat4", "heat5"})
    CHECK(drawn.value(map, 0) > 3);
}

TEST_CASE("page: in the dark every chart draws its series, too") {
  const Seen seen = look_at(html_page(gather(sample_record(), std::nullopt)),
                            "--blink-settings=preferredColorScheme=0");
  check_clean(seen);
  CHECK(seen.result.at("theme") == true);
  for (const char* chart : {"layer", "speedup", "sensitivity", "roofline", "rejected"})
    CHECK(seen.result.at("drawn").value(chart, 0) > 50);
}

TEST_CASE("page: the probe notices a script that fails") {
  std::string page = html_page(gather(sample_record(), std::nullopt));
  page.insert(page.rfind("drawAll();"), "undefinedFunction();\n");
  const Seen seen = look_at(page);
  REQUIRE_FALSE(seen.result.is_null());
  CHECK(seen.result.at("wrong").dump().find("undefinedFunction") != std::string::npos);
  CHECK(seen.result.at("drawn").value("layer", 0) == 0);
}

TEST_CASE("page: a search that found nothing has a page without errors") {
  SearchRecord record = sample_record();
  record.trials.clear();
  record.others.clear();
  check_clean(look_at(html_page(gather(record, std::nullopt))));
}

int main(int argc, char** argv) {
  constexpr int kSkipped = 77;  // SKIP_RETURN_CODE in CMakeLists.txt
  browser = find_browser();
  if (browser.empty()) {
    std::printf("skipped: no Chromium (apt-get install chromium)\n");
    return kSkipped;
  }
  return doctest::Context(argc, argv).run();
}
