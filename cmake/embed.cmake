# Writes a C++ file that holds text files as string literals.
#   cmake -DOUTPUT=x.cpp -DFUNCTION=embedded_kernels -DROOT=dir -DFILES=a;b -P embed.cmake
# A raw string literal is limited to 64 KiB by some compilers, so files are split into pieces.
set(entries "")
foreach(file IN LISTS FILES)
  file(READ "${ROOT}/${file}" text)
  string(LENGTH "${text}" length)
  set(pieces "\"\"\n")
  set(offset 0)
  while(offset LESS length)
    string(SUBSTRING "${text}" ${offset} 8000 piece)
    string(APPEND pieces "R\"~embed~(${piece})~embed~\"\n")
    math(EXPR offset "${offset} + 8000")
  endwhile()
  string(APPEND entries "    {\"${file}\", ${pieces}},\n")
endforeach()
file(WRITE "${OUTPUT}" "#include \"core/embedded.hpp\"\n
namespace moetune {
namespace {
constexpr EmbeddedFile kFiles[] = {\n${entries}};
}  // namespace\n
std::span<const EmbeddedFile> ${FUNCTION}() { return kFiles; }\n
}  // namespace moetune\n")
