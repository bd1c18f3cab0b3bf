#include "src/control/token.h"

#include <array>
#include <cstdlib>
#include <fstream>
#include <utility>

namespace genie::control {
namespace {

constexpr size_t kMaxTokenBytes = 4096;
constexpr size_t kLineEnds = 2;

}  // namespace

Result<std::string> read_token_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  // One byte more than may be there: a longer file is told from one that fits.
  std::array<char, kMaxTokenBytes + kLineEnds + 1> bytes;
  file.read(bytes.data(), bytes.size());
  std::string token(bytes.data(), static_cast<size_t>(file.gcount()));
  while (token.ends_with('\n') || token.ends_with('\r')) token.pop_back();
  if (file.bad() || token.empty() || token.size() > kMaxTokenBytes ||
      token.find_first_of("\r\n") != std::string::npos) {
    return Status(Errc::kConfig, "the token file " + path + " must be readable and hold one line of at most " +
                                     std::to_string(kMaxTokenBytes) + " bytes");
  }
  return token;
}

Result<std::string> token_or_environment(std::string given) {
  if (!given.empty()) return given;
  const char* const path = std::getenv("GENIE_TOKEN_FILE");
  if (path == nullptr || *path == '\0') return std::string();
  Result<std::string> token = read_token_file(path);
  if (!token) return Status(token.code(), "GENIE_TOKEN_FILE: " + std::string(token.status().text()));
  return token;
}

}  // namespace genie::control
