// Columns of text, aligned.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace moetune {

class TextTable {
 public:
  // A heading that starts with '<' is left-aligned (the sign is dropped), others are right-aligned.
  explicit TextTable(std::vector<std::string> headings);
  // As many cells as there are headings.
  void add(std::vector<std::string> cells);
  // Two spaces between columns, no trailing spaces, one '\n' a line.
  std::string text() const;

 private:
  std::vector<bool> left_;
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace moetune
