//! Limits of an endpoint's traffic, and the annotation that may hold one of them.

use super::Check;
use crate::model::{DSCP_ANNOTATION, Dscp, Qos};
use crate::path::Path;
use crate::resource::{ObjectMeta, QosControls};

pub(super) fn controls(controls: Option<&QosControls>, at: &Path, check: &mut Check) {
    for (field, message) in controls.map(Qos::read).unwrap_or_default().1 {
        check.problem(at.key(field), message);
    }
}

pub(super) fn annotation(metadata: &ObjectMeta, check: &mut Check) {
    let text = metadata.annotations.get(DSCP_ANNOTATION);
    if let Some(Err(error)) = text.map(|text| text.parse::<Dscp>()) {
        let at = Path::root().key("metadata").key("annotations");
        check.problem(at.key(DSCP_ANNOTATION), error.to_string());
    }
}
