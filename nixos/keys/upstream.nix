# What a provider's `upstream` and `header` say, as parts: { value } or { problem }, a sentence that says what to write instead.
{ lib }:
let
  inherit (import ./providers.nix) passed;
  inherit (import ../dns-name.nix { inherit lib; }) parseName;
in
{
  # "https://api.example.org/v1" -> { host, port, path }; the path may be empty.
  parseUpstream =
    text:
    let
      parts = builtins.match "https://([^/:@?#]*)(:([0-9]{1,5}))?(/[A-Za-z0-9._~/-]*)?" text;
      user = builtins.match "([a-z]+://)[^/?#]*@(.*)" text;
      host = lib.head parts;
      port = lib.elemAt parts 2;
      number = if port == null then 443 else lib.toIntBase10 port;
      path = lib.defaultTo "" (lib.elemAt parts 3);
      name = parseName host;
      segments = lib.splitString "/" (lib.removePrefix "/" path);
    in
    if user != null then
      # It may have a password.
      { problem = "a base URL has a user, whom nobody would send; write `${lib.concatStrings user}`, and have `keyFile` name the file with the key"; }
    else if lib.hasPrefix "http://" text then
      { problem = "`${text}` is without TLS, and the key would go over the network for all to read; write `https://`"; }
    else if lib.hasPrefix "https://[" text then
      { problem = "`${text}` has an address, and TLS needs a name to verify; write its DNS name"; }
    else if parts == null then
      { problem = "`${text}` is no base URL; write one as in `https://api.example.org/v1`, without a query"; }
    else if builtins.match "[ -~]*" host == null then
      { problem = "`${host}` in `${text}` has letters that certificates do not have; write the name as the DNS has it, with `xn--`"; }
    else if name ? problem || lib.hasInfix "*" host then
      { problem = "`${host}` in `${text}` is no name of a host, and TLS needs one to verify; write its DNS name"; }
    else if number < 1 || number > 65535 then
      { problem = "`${text}` has no port; write one from 1 to 65535" ; }
    else if path != "" && lib.any (segment: lib.elem segment [ "" "." ".." ]) segments then
      { problem = "`${text}` has empty, `.` or `..` parts, or ends in `/`; write it without"; }
    else if lib.stringLength path > 100 then
      { problem = "`${text}` has a path of more than 100 characters, for which nginx has no room; give what is behind it a shorter one"; }
    else
      {
        value = {
          # Without the dot that may end a name: certificates have none.
          host = lib.removeSuffix "." (lib.toLower host);
          port = number;
          inherit path;
        };
      };

  # "Authorization: Bearer" -> { name, scheme }; the scheme may be null.
  parseHeader =
    text:
    let
      parts = builtins.match "([A-Za-z0-9-]+)(: ([A-Za-z0-9]+))?" text;
      name = lib.head parts;
    in
    if parts == null then
      { problem = "`${text}` is no header for a key; write its name, as in `x-api-key`, and maybe a scheme, as in `Authorization: Bearer`"; }
    else if lib.elem (lib.toLower name) (map lib.toLower (passed ++ [ "Host" "Connection" "Content-Length" "Transfer-Encoding" ])) then
      { problem = "`${name}` says something else of every request, and would be sent twice; write the header that the provider takes its key in"; }
    else
      {
        value = {
          inherit name;
          scheme = lib.elemAt parts 2;
        };
      };
}
