//! Where in an object something is: `spec.ingress[0].source.nets[1]`.

use std::fmt;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// A member of an object.
    Key(String),
    /// An element of a list, from 0.
    Index(usize),
}

/// A way into an object, from its root.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Path(Vec<Step>);

impl Path {
    /// The object itself.
    pub fn root() -> Self {
        Self::default()
    }

    /// The path of the member `name` of what this path leads to.
    #[must_use]
    pub fn key(&self, name: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(name.into()));
        Self(steps)
    }

    /// The path of the element `index` of what this path leads to.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    /// The steps from the root.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl FromIterator<Step> for Path {
    fn from_iter<I: IntoIterator<Item = Step>>(steps: I) -> Self {
        Self(steps.into_iter().collect())
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if key.contains(['.', '[', ' ', '/']) => write!(f, "[{key:?}]")?,
                Step::Key(key) => write!(f, "{}{key}", if i == 0 { "" } else { "." })?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_people_write_it() {
        let path = Path::root()
            .key("spec")
            .key("ingress")
            .index(0)
            .key("source")
            .key("nets")
            .index(1);
        assert_eq!(path.to_string(), "spec.ingress[0].source.nets[1]");
        let label = Path::root().key("metadata").key("labels").key("example.com/role");
        assert_eq!(label.to_string(), "metadata.labels[\"example.com/role\"]");
        assert_eq!(Path::root().to_string(), "");
    }
}
