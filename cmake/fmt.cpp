// fmt 9, compiled once: header-only, every file that formats anything compiles fmt's number
// formatting anew. Its package has no static library, and with the shared one the program would
// need the package to run.
#include <fmt/format-inl.h>

// The templates that only that header defines, for what this project formats: char.
namespace fmt::detail {
template thousands_sep_result<char> thousands_sep_impl<char>(locale_ref);
template std::locale locale_ref::get<std::locale>() const;  // dates
template char decimal_point_impl<char>(locale_ref);
template dragonbox::decimal_fp<float> dragonbox::to_decimal<float>(float) noexcept;
template dragonbox::decimal_fp<double> dragonbox::to_decimal<double>(double) noexcept;
template void buffer<char>::append<char>(const char*, const char*);
}  // namespace fmt::detail
