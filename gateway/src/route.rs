//! Which route a request belongs to.

use farebox_core::{Access, RouteId};
use http::Method;

use crate::{AmbiguousPath, CanonicalPath, Methods, PathPattern, UpstreamConfig, pattern::Segment};

/// One route, as configured.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name, unique.
    pub id: RouteId,
    /// Its methods.
    pub methods: Methods,
    /// Its paths.
    pub pattern: PathPattern,
    /// Where its requests go.
    pub upstream: UpstreamConfig,
    /// Free or paid.
    pub access: Access,
    /// Bytes of a request's body, if not [`crate::Limits::request_body_bytes_max`].
    pub request_body_bytes_max: Option<u64>,
}

/// All routes, by path and method.
#[derive(Debug)]
pub struct RouteTable {
    routes: Vec<Route>,
    tree: Node,
    /// The same with literals in lower case and trailing slashes dropped, as some upstreams route.
    folded: Node,
}

/// Two routes that cannot be told apart.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteTableError {
    /// They match the same requests with the same precedence.
    #[error("routes `{first}` and `{second}` match the same method and path; remove one or change its match")]
    Conflict {
        /// Earlier in the config.
        first: RouteId,
        /// Later.
        second: RouteId,
    },
    /// They have the same id.
    #[error("two routes have the id `{id}`; ids are unique")]
    DuplicateId {
        /// Which.
        id: RouteId,
    },
    /// There is none.
    #[error("there is no route; name at least one")]
    Empty,
}

impl RouteTableError {
    /// Stable, snake_case.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Conflict { .. } => "route_conflict",
            Self::DuplicateId { .. } => "duplicate_route_id",
            Self::Empty => "no_route",
        }
    }
}

/// A request's route.
#[derive(Clone, Debug)]
pub struct RouteMatch<'a> {
    /// Which.
    pub route: &'a Route,
    /// Its index in the table.
    pub index: usize,
    /// The path that was matched, and is to be forwarded.
    pub path: CanonicalPath<'a>,
}

#[derive(Debug, Default)]
struct Node {
    literals: std::collections::HashMap<Box<str>, Node>,
    one: Option<Box<Node>>,
    here: Leaf,
    rest: Leaf,
}

/// Routes of one pattern, by method.
#[derive(Debug, Default)]
struct Leaf {
    by_method: Vec<(Method, usize)>,
    any: Option<usize>,
}

impl RouteTable {
    /// Builds the table. Of two patterns that both match, the one that is literal in the first segment where they differ wins, then
    /// `{name}`, then the rest; of two with the same pattern, the one that names the method, then GET for HEAD, then `ANY`.
    ///
    /// # Errors
    /// [`RouteTableError`] if two routes are equal in both, or share an id, or there is none.
    pub fn new(routes: Vec<Route>) -> Result<Self, RouteTableError> {
        if routes.is_empty() {
            return Err(RouteTableError::Empty);
        }
        let mut tree = Node::default();
        let mut folded = Node::default();
        for (index, route) in routes.iter().enumerate() {
            if routes[..index].iter().any(|earlier| earlier.id == route.id) {
                return Err(RouteTableError::DuplicateId { id: route.id.clone() });
            }
            tree.leaf(&route.pattern.segments).insert(&route.methods, index).map_err(|earlier| {
                RouteTableError::Conflict { first: routes[earlier].id.clone(), second: route.id.clone() }
            })?;
            // Routes that differ in case or a trailing slash alone were told apart on purpose.
            folded.leaf(&fold_pattern(&route.pattern.segments)).insert(&route.methods, index).ok();
        }
        Ok(Self { routes, tree, folded })
    }

    /// The route of a request, if any.
    ///
    /// # Errors
    /// [`AmbiguousPath`] if the path, or which route an upstream would take it for, can be read in two ways.
    pub fn find<'a>(&'a self, method: &Method, raw_path: &'a str) -> Result<Option<RouteMatch<'a>>, AmbiguousPath> {
        let path = CanonicalPath::parse(raw_path)?;
        let Some(index) = self.tree.find(&path.decoded()[1..], method) else { return Ok(None) };
        self.refuse_lookalike(method, path.decoded(), index)?;
        Ok(Some(RouteMatch { route: &self.routes[index], index, path }))
    }

    /// All routes, in order.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Some upstreams (Express by default) ignore case and a trailing slash: under `/*` free and `/paid` paid, `/PAID` would be
    /// served as `/paid` for nothing.
    fn refuse_lookalike(&self, method: &Method, decoded: &str, found: usize) -> Result<(), AmbiguousPath> {
        let odd = |byte: u8| byte.is_ascii_uppercase() || !byte.is_ascii();
        if !decoded.bytes().any(odd) && (!decoded.ends_with('/') || decoded.len() == 1) {
            return Ok(());
        }
        let folded = decoded.to_lowercase();
        let folded = folded[1..].strip_suffix('/').unwrap_or(&folded[1..]);
        let Some(lookalike) = self.folded.find(folded, method) else { return Ok(()) };
        let found_pattern = fold_pattern(&self.routes[found].pattern.segments);
        if lookalike == found || fold_pattern(&self.routes[lookalike].pattern.segments) == found_pattern {
            return Ok(());
        }
        Err(AmbiguousPath::new("differs from another route's only by case or a trailing slash"))
    }
}

fn fold_pattern(segments: &[Segment]) -> Vec<Segment> {
    let mut folded: Vec<Segment> = segments
        .iter()
        .map(|segment| match segment {
            Segment::Literal(text) => Segment::Literal(text.to_lowercase().into()),
            other => other.clone(),
        })
        .collect();
    if folded.len() > 1 && folded.last() == Some(&Segment::Literal("".into())) {
        folded.pop();
    }
    folded
}

impl Node {
    fn leaf(&mut self, segments: &[Segment]) -> &mut Leaf {
        match segments {
            [] => &mut self.here,
            [Segment::Rest, ..] => &mut self.rest,
            [Segment::One, tail @ ..] => self.one.get_or_insert_default().leaf(tail),
            [Segment::Literal(text), tail @ ..] => self.literals.entry(text.clone()).or_default().leaf(tail),
        }
    }

    fn find(&self, path: &str, method: &Method) -> Option<usize> {
        let (segment, tail) = path.split_once('/').map_or((path, None), |(segment, tail)| (segment, Some(tail)));
        let below = |node: &Self| match tail {
            Some(tail) => node.find(tail, method),
            None => node.here.find(method),
        };
        self.literals
            .get(segment)
            .and_then(below)
            .or_else(|| self.one.as_deref().filter(|_| !segment.is_empty()).and_then(below))
            .or_else(|| self.rest.find(method))
    }
}

impl Leaf {
    /// The index that is already there, if one is.
    fn insert(&mut self, methods: &Methods, index: usize) -> Result<(), usize> {
        match methods {
            Methods::Any => match self.any {
                Some(earlier) => Err(earlier),
                None => {
                    self.any = Some(index);
                    Ok(())
                }
            },
            Methods::Only(methods) => {
                methods.iter().try_for_each(|method| match self.by_method.iter().find(|(known, _)| known == method) {
                    Some((_, earlier)) => Err(*earlier),
                    None => {
                        self.by_method.push((method.clone(), index));
                        Ok(())
                    }
                })
            }
        }
    }

    fn find(&self, method: &Method) -> Option<usize> {
        let named = |method: &Method| self.by_method.iter().find(|(known, _)| known == method).map(|(_, index)| *index);
        named(method).or_else(|| if method == Method::HEAD { named(&Method::GET) } else { None }).or(self.any)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{UpstreamConfig, parse_match};

    fn table(matches: &[&str]) -> Result<RouteTable, RouteTableError> {
        let route = |text: &&str| {
            let (methods, pattern) = parse_match(text).unwrap();
            Route {
                id: RouteId::new(*text),
                methods,
                pattern,
                upstream: UpstreamConfig::new("http://127.0.0.1:9".parse().unwrap()),
                access: Access::Free,
                request_body_bytes_max: None,
            }
        };
        RouteTable::new(matches.iter().map(route).collect())
    }

    /// Which of `matches` a request is for: its match text, `none` or `ambiguous`.
    fn check(matches: &[&str], method: &str, path: &str, expected: &str) {
        let table = table(matches).unwrap();
        let method = method.parse().unwrap();
        let found = match table.find(&method, path) {
            Ok(Some(found)) => found.route.id.to_string(),
            Ok(None) => "none".to_owned(),
            Err(_) => "ambiguous".to_owned(),
        };
        assert_eq!(found, expected, "{method} {path}");
    }

    #[test]
    fn the_most_specific_route_wins() {
        let routes =
            ["GET /v1/*", "GET /v1/reports", "GET /v1/{id}", "GET /v1/{id}/raw", "POST /v1/reports", "ANY /v1/reports"];
        check(&routes, "GET", "/v1/reports", "GET /v1/reports");
        check(&routes, "HEAD", "/v1/reports", "GET /v1/reports");
        check(&routes, "POST", "/v1/reports", "POST /v1/reports");
        check(&routes, "DELETE", "/v1/reports", "ANY /v1/reports");
        check(&routes, "GET", "/v1/7", "GET /v1/{id}");
        check(&routes, "GET", "/v1/7/raw", "GET /v1/{id}/raw");
        check(&routes, "GET", "/v1/reports/raw", "GET /v1/{id}/raw");
        check(&routes, "GET", "/v1/7/raw/x", "GET /v1/*");
        check(&routes, "GET", "/v1/", "GET /v1/*");
        check(&routes, "GET", "/v1", "none");
        check(&routes, "POST", "/v1/7", "none");
        check(&routes, "GET", "/", "none");
    }

    #[test]
    fn a_route_that_names_another_method_does_not_hide_a_wider_one() {
        check(&["GET /v1/*", "POST /v1/x"], "GET", "/v1/x", "GET /v1/*");
    }

    #[test]
    fn escapes_do_not_lead_around_a_route() {
        let routes = ["GET /*", "GET /a:b", "GET /paid", "GET /caf%C3%A9", "GET /thé"];
        check(&routes, "GET", "/a%3Ab", "GET /a:b");
        check(&routes, "GET", "/%70aid", "GET /paid");
        check(&routes, "GET", "/caf%c3%a9", "GET /caf%C3%A9");
        check(&routes, "GET", "/th%c3%a9", "GET /thé");
        check(&routes, "GET", "/paid%3f", "GET /*");
    }

    #[test]
    fn case_and_trailing_slashes_do_not_lead_around_a_route() {
        let routes = ["GET /*", "GET /paid", "GET /v1/{id}", "GET /Docs/*", "GET /docs/*"];
        for path in ["/PAID", "/Paid", "/paid/", "/PAID/", "/V1/7", "/v1/7/"] {
            check(&routes, "GET", path, "ambiguous");
        }
        check(&routes, "GET", "/v1/ABC", "GET /v1/{id}");
        check(&routes, "GET", "/Other/", "GET /*");
        check(&routes, "GET", "/Docs/A", "GET /Docs/*");
        check(&routes, "GET", "/docs/A", "GET /docs/*");
        check(&["GET /paid"], "GET", "/PAID", "none");
        check(&["GET /paid"], "GET", "/paid/", "none");
    }

    #[test]
    fn routes_that_cannot_be_told_apart_are_refused() {
        for pair in [
            ["GET /a", "GET,POST /a"],
            ["GET /a/{x}", "GET /a/{y}"],
            ["ANY /a/*", "* /a/{*rest}"],
            ["GET /%61", "GET /a"],
        ] {
            assert_eq!(table(&pair).unwrap_err().code(), "route_conflict", "{pair:?}");
        }
        assert_eq!(table(&["GET /a", "GET /a"]).unwrap_err().code(), "duplicate_route_id");
        assert_eq!(table(&[]).unwrap_err().code(), "no_route");
        assert!(table(&["GET /a", "ANY /a", "HEAD /a", "GET /a/", "GET /A"]).is_ok());
    }

    #[test]
    fn a_match_is_methods_and_a_pattern() {
        for wrong in
            ["/a", "GET a", "get /a", "GET, /a", "CONNECT /a", "GET,GET /a", "GET /a//b", "GET /a/../b", "GET /*/b"]
        {
            assert!(parse_match(wrong).is_err(), "{wrong}");
        }
        for wrong in ["GET /a*", "GET /{}", "GET /{a}b", "GET /{a-b}", "GET /a?b", "GET /%2f", "GET  /a", "GET /a;b"] {
            assert!(parse_match(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_spelling_of_a_path_falls_from_its_route_to_a_wider_one(
            escaped in prop::collection::vec(0_usize..3, 9),
            slash in any::<bool>(),
        ) {
            // `/paid/one`, each letter bare, escaped or in upper case: its own route or a refusal, never the free rest.
            let table = table(&["GET /*", "GET /paid/one"]).unwrap();
            let mut path: String = "/paid/one".chars().zip(escaped).map(|(c, how)| match how {
                1 if c != '/' => format!("%{:02x}", c as u32),
                2 => c.to_ascii_uppercase().to_string(),
                _ => c.to_string(),
            }).collect();
            path.extend(slash.then_some('/'));
            match table.find(&Method::GET, &path) {
                Ok(found) => prop_assert_eq!(found.unwrap().route.id.as_str(), "GET /paid/one"),
                Err(_) => prop_assert!(path != "/paid/one"),
            }
        }
    }
}
