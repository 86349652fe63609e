//! One request: route it, admit it, pass it on.

use hyper::body::Incoming;

use crate::{Route, client::ClientInfo};

/// A routed request, for admission.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// As it came; its URI's path is already the canonical one.
    pub(crate) request: http::Request<Incoming>,
    /// Who calls.
    pub(crate) client: ClientInfo,
    /// Index into `shared.routes.routes()`; see [`Inbound::route`].
    pub(crate) route: usize,
}

impl Inbound {
    /// The route it belongs to.
    pub(crate) fn route<'a>(&self, table: &'a crate::RouteTable) -> &'a Route {
        &table.routes()[self.route]
    }
}
