//! Who is calling, and under which URL, by the rules of trust in proxies.

use std::net::IpAddr;

use http::uri::Scheme;
use url::Url;

/// Who is calling. What a listed proxy said is in it; what others claimed is not.
#[derive(Clone, Debug)]
pub(crate) struct ClientInfo {
    /// The client, as seen by the outermost trusted proxy.
    pub(crate) addr: IpAddr,
    /// `http` or `https`, as the client used it.
    pub(crate) scheme: Scheme,
    /// `Host` or `:authority`, as the client used it; checked to be an authority without user. HTTP/1.0 may lack it.
    pub(crate) authority: Option<http::uri::Authority>,
}

impl ClientInfo {
    /// The URL under which the client asked for `path_and_query`: for bills. `public_url`'s origin and base path if it is
    /// configured.
    pub(crate) fn resource_url(&self, public_url: Option<&Url>, path_and_query: &str) -> String {
        match (public_url, &self.authority) {
            (Some(base), _) => format!("{}{path_and_query}", base.as_str().trim_end_matches('/')),
            (None, Some(authority)) => format!("{}://{authority}{path_and_query}", self.scheme),
            (None, None) => format!("{}://localhost{path_and_query}", self.scheme),
        }
    }
}
